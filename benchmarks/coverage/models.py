"""Which networks the coverage program looks at, in which order, and how they are told apart."""

import re

import torchvision
from torchvision.models import segmentation

PARAMETER_LIMIT = 200_000_000
"""A torchvision network of this many parameters or more is left out: memory and hours."""

# One line a family of timm; the small members, and those that differ in what they compute.
_TIMM = """
resnet: resnet10t resnet18 resnet26d resnetaa34d resnetblur18 resnet50_gn
resnext: resnext26ts resnext50_32x4d
res2net: res2net50_14w_8s res2next50
resnest: resnest14d resnest50d_1s4x24d
resnetrs: resnetrs50
seresnet: seresnet18 legacy_seresnet18 legacy_seresnext26_32x4d
ecaresnet: ecaresnet26t
gcresnet: gcresnext26ts
skresnet: skresnet18
resnetv2: resnetv2_18 resnetv2_50 resnetv2_50d_gn resnetv2_50x1_bit
regnet: regnetx_002 regnety_002 regnetz_005 regnetv_040
efficientnet: efficientnet_b0 efficientnet_b0_gn efficientnet_lite0 efficientnet_es
efficientnet_cc: efficientnet_cc_b0_4e
tf_efficientnet: tf_efficientnet_b0 tf_efficientnet_lite0
efficientnetv2: efficientnetv2_rw_t tf_efficientnetv2_b0
mobilenetv1: mobilenetv1_100
mobilenetv2: mobilenetv2_050
mobilenetv3: mobilenetv3_small_050 tf_mobilenetv3_small_075
mobilenetv4: mobilenetv4_conv_small mobilenetv4_hybrid_medium
mnasnet: mnasnet_small semnasnet_050 spnasnet_100
fbnet: fbnetc_100 fbnetv3_b
hardcorenas: hardcorenas_a
mixnet: mixnet_s tf_mixnet_s
tinynet: tinynet_e
lcnet: lcnet_035 lcnetv2_small
rexnet: rexnet_100
ghostnet: ghostnet_050 ghostnetv2_100 ghostnetv3_050
repghost: repghostnet_050
densenet: densenet121 densenetblur121d
rdnet: rdnet_tiny
dla: dla34 dla46_c dla60_res2net
dpn: dpn68
vovnet: vovnet39a ese_vovnet19b_dw eca_vovnet39b
hgnet: hgnet_tiny hgnetv2_b0
hrnet: hrnet_w18_small
inception: inception_v3 inception_v4 inception_resnet_v2
inception_next: inception_next_atto
xception: legacy_xception xception41 xception41p
nfnet: nf_resnet26 nf_regnet_b0 eca_nfnet_l0 dm_nfnet_f0
convnext: convnext_atto convnext_atto_ols convnextv2_atto
repvgg: repvgg_a0
repvit: repvit_m0_9
mobileone: mobileone_s0
cspnet: cspresnet50 cspresnext50 cspdarknet53 cs3darknet_focus_s cspnext_tiny
darknet: darknet17 darknet53
selecsls: selecsls42b
gernet: gernet_s
tresnet: tresnet_m
starnet: starnet_s050
fasternet: fasternet_t0
mambaout: mambaout_femto
convmixer: convmixer_1024_20_ks9_p14
vgg: vgg11_bn
fastvit: fastvit_t8
edgenext: edgenext_xx_small
efficientformer: efficientformer_l1 efficientformerv2_s0
efficientvit: efficientvit_b0 efficientvit_m0
levit: levit_conv_128s
mobilevit: mobilevit_xxs mobilevitv2_050
poolformer: poolformer_s12
swiftformer: swiftformer_xs
visformer: visformer_tiny
bat_resnext: bat_resnext26ts
botnet: botnet26t_256
halonet: halonet26t
lambda_resnet: lambda_resnet26t
nasnet: nasnetalarge pnasnet5large
"""

# Attention over positions, in all blocks or in some: no convolutional networks in the strict sense.
_ATTENTION = re.compile(
    r"(vit_|swin|maxvit|mobilenetv4_hybrid|edgenext|efficientformer|efficientvit|levit|mobilevit"
    r"|swiftformer|visformer|bat_resnext|botnet|halonet|lambda_)"
)


def timm_families() -> dict[str, list[str]]:
    """Our names of timm's families, each with its members in this study."""
    lines = [line.partition(":") for line in _TIMM.strip().splitlines()]
    return {family: members.split() for family, _, members in lines}


def timm_names() -> list[str]:
    """`timm:NAME` of every member, family by family."""
    return [f"timm:{name}" for members in timm_families().values() for name in members]


def torchvision_sizes() -> dict[str, int]:
    """Parameters of each of torchvision's networks, by `torchvision:NAME`, small ones first."""
    names = torchvision.models.list_models(torchvision.models)
    sizes = {name: _parameters(name) for name in [*names, *segmentation_names()]}
    return {f"torchvision:{name}": sizes[name] for name in sorted(sizes, key=lambda n: sizes[n])}


def segmentation_names() -> list[str]:
    """The networks that give a map of classes, without torchvision's prefix."""
    return torchvision.models.list_models(segmentation)


def is_convolutional_classifier(name: str) -> bool:
    """Whether a large part of its MACs should be prunable: no attention, no segmentation."""
    bare = name.partition(":")[2] or name
    return not _ATTENTION.match(bare) and bare not in segmentation_names()


def _parameters(name: str) -> int:
    """As the published weights say, so that nothing has to be built."""
    return int(torchvision.models.get_model_weights(name)["DEFAULT"].meta["num_params"])
