"""
Test hosts on this machine: systemd-nspawn containers that boot Debian 12 with sshd.

For tests and the demo only.  The toolkit reaches lab hosts over SSH, as it reaches any other host.
"""
