"""Disentanglement scores on images with known factors: MIG, SAP, DCI, FactorVAE, beta-VAE."""
