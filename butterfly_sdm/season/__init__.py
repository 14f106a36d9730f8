"""When people looked: season curves, standardised rates and effective visits from dated visits."""
