"""The orchestrator: decides what to try, hands it to workers, keeps what they say."""
