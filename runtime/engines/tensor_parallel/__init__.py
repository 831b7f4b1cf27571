"""
One model on several GPUs: rank 0 is the engine process, each further rank a process of its own.
"""
