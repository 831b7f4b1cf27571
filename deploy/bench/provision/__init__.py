"""
Times provisioning of lab hosts beside its peers: Ansible, mitogen and plain pyinfra.
"""
