"""
What all engines share: the messages of the wire protocol and the requests in flight.
"""
