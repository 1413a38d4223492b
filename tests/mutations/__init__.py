"""What may be wrong with a bundle, by accident or on purpose: one function a kind.

A mutation gets random numbers and the folder of a bundle of its own, which it damages. The first
half leaves the manifest's digests as they are; the second (`FORGED`) makes them fit again, as
whoever can write the manifest can. `expected` is what `verify_bundle` has to do: refuse, or either
where the damage may be harmless (a flipped bit in the words of a description).
"""

from tests.mutations import of_dear_graphs, of_files, of_graphs, of_samples
from tests.mutations.registry import FORGED, PLAIN, Mutation

__all__ = ["FORGED", "PLAIN", "Mutation", "of_dear_graphs", "of_files", "of_graphs", "of_samples"]
