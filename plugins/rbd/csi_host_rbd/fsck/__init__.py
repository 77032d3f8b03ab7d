"""What a pool holds that belongs together and does not: journal, images, snapshots, trash, groups, locks."""
