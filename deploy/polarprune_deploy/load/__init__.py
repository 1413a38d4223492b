"""`polarprune bench --server`: load for any server of the Open Inference Protocol, and its figures.

Client and server may share a machine, so the client is cheap: requests are bytes made beforehand,
sockets are asyncio's own protocols, answers are compared as bytes first. It needs numpy alone.
"""
