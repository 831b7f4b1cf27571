"""
Real test hosts on this machine: systemd-nspawn containers that boot Debian 12 with sshd.

Never part of a release: what the toolkit does to a lab host, it does over SSH, as to any other.
"""
