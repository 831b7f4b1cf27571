"""
SmolLM2-135M-Instruct, the real model of the lab: where it comes from, and what it says.
"""
