"""The proof of DESIGN §5: thousands of interleavings of refresh, retry, theft, withdrawal and crash, on real processes.

`make soak` runs it; tests/flows/test_refresh_interleavings.py runs a short one.
"""
