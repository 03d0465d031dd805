"""Every cut between two devices, predicted from profiles and measured on real processes and an emulated link."""
