"""What all claims share: their base, what they measure with, the record of results and its page."""
