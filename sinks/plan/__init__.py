"""What a configuration costs before anything is allocated: parameters, floating-point operations, memory."""
