"""The search for one kernel's best configuration: samplers, journals, finals, and searches replayed."""
