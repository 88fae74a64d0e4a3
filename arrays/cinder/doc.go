// Package cinder is the provider for volumes of OpenStack Cinder, whatever
// storage is behind it.
//
// A snapshot is Cinder's own (driver.ArraySnapshot): Cinder knows no mirrors.
// What is read or exposed is a volume made of the snapshot, a LUN independent of
// it and of production; it is deleted with the snapshot.
//
// # What belongs to a set
//
// A snapshot carries the set's tag in its metadata and name, a group snapshot in
// its name, a volume made of a snapshot the snapshot's ID. Nothing is remembered
// here: after a lost reply or a crash Cinder is asked for those. Two calls for
// one tag at the same time from two processes may leave two snapshots, which
// Lookup both returns.
//
// # Groups
//
// Volumes are split at one instant by a group snapshot, and only where Cinder's
// scheduler reports consistent_group_snapshot_enabled for the pool of every one
// of them. Elsewhere Cinder accepts a group type that asks for it and takes the
// snapshots one after the other without a word: here that is refused (kind
// NotSupported). Reading the pools and volumes' hosts is an administrator's
// right (policy scheduler_extension:scheduler_stats:get_pools, context_is_admin
// and volume_extension:volume_host_attribute); without it no group is consistent.
// Volumes that are in no group are put into one for the time of the snapshot.
//
// # Errors
//
// What can be repeated is repeated, a bounded number of times and with jitter:
// questions and deletions after any failure to answer, creations only where
// Cinder said that it did nothing (429, 503 with Retry-After, a connection that
// was never made). A creation that was not answered is looked up, by its tag or by a
// mark of the call, and where nothing is found its kind is OutcomeUnknown.
// Passwords, tokens and CHAP secrets are in no error and no log.
package cinder
