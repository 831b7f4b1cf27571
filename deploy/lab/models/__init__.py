"""
Builds the lab's tiny models: a program of its own, `python -m deploy.lab.models`.

It trains with `runtime.models`.  The rest of `deploy` runs it as a process and never imports it.
"""
