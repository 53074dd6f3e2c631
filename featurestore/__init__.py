"""featurestore: real-time velocity features, exact until a key is hot and with true bounds after."""
