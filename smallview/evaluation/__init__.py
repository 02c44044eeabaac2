"""Evaluation: frozen features, named protocols, floors beside every figure."""
