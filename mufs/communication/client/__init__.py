"""Client part of communication: the request channel's client, the receiver, repair requests."""
