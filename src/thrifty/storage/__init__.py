"""Where bytes live: arenas in memory, the disk tier, the ledger that counts them, the budget that bounds them."""
