"""One-step samples after equal time: our method against four others, same network, data, batch and evaluation."""
