"""How far each code stands for one factor alone, where the factors are known: MIG, SAP, DCI, FactorVAE, beta-VAE."""

from infogan_ray.disentanglement.encoded import Encoded, Representation, of_model
from infogan_ray.disentanglement.measure import THOROUGH, DisentanglementConfig, measure

__all__ = ["THOROUGH", "DisentanglementConfig", "Encoded", "Representation", "measure", "of_model"]
