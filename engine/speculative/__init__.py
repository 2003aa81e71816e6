"""Speculative decoding: who guesses, how guesses are verified, how many are worth making."""
