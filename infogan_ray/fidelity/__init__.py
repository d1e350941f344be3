"""How near drawn images are to real ones on the features of a network: distances, and what each set covers."""

from infogan_ray.fidelity.measure import FidelityConfig, measure_fid, measure_fidelity

__all__ = ["FidelityConfig", "measure_fid", "measure_fidelity"]
