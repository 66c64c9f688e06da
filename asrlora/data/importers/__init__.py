"""Manifests of other projects' formats."""
