"""The stored description against what Triton's own client was generated from."""

from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from polarprune_deploy.fleet.triton_protocol import message_class, service_methods


def test_stored_description_is_that_of_tritons_client() -> None:
    for module in (model_config_pb2, service_pb2):
        theirs = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(theirs)
        some = next(iter(theirs.message_type)).name
        ours = descriptor_pb2.FileDescriptorProto()
        message_class(some).DESCRIPTOR.file.CopyToProto(ours)
        assert ours == theirs


def test_messages_cross_to_tritons_client_in_one_process() -> None:
    ours = message_class("ModelInferRequest")(model_name="resnet", id="7")
    ours.parameters["timeout"].int64_param = 5
    theirs = service_pb2.ModelInferRequest.FromString(ours.SerializeToString())
    assert (theirs.model_name, theirs.id) == ("resnet", "7")
    assert theirs.parameters["timeout"].int64_param == 5


def test_service_has_the_methods_that_tritons_client_calls() -> None:
    names = [method.name for method in service_methods()]
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert names == [method.name for method in service.methods]
