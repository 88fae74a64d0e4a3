// Package orchestrator holds the nouns of a snapshot set and the Service that
// every door offers (command line, API, hooks). It imports nothing of ours;
// whatever acts lives in the packages below it.
//
// # The order of steps
//
// Others freeze the applications, call the array, wait, and thaw: the freeze
// lasts as long as the array takes. Here the guest first snapshots its own
// volumes inside its virtual disks and is released; only when it has reported
// every volume is the array asked to split a mirror. The split is dirty, as
// any copy of a running disk is, but it holds the clean snapshot, and recovery
// puts the clean blocks in place of the dirty ones. (The method is that of
// European patent EP 2 016 501.)
//
// The price is stated in every result: each guest's consistent moment is its
// own; an application on several volumes is held in one session over all their
// snapshots; a volume group over several LUNs needs a split that keeps write
// order, or its level is crash.
//
// # The packages
//
//	machine    (state, event) → state, action: every rule about order, pure
//	classify   facts about a VM → how much downtime; evidence → level reached
//	journal    what must survive a crash: documents, and what each set holds
//	engine     performs the actions, undoes them, takes up after a crash
//	writer     host writers: one hypervisor's VMs, each in a package below
//	guest      what happens inside a guest: messages, requester, applications
//
// # I am a snapshot set
//
//  1. A Request comes in; Create classifies its VMs by what the host writers
//     report, resolves their disks to volumes by identity, and refuses what can't
//     reach the level before anything is touched. I am planned, and journaled.
//  2. Arrays prepare: mirrors come into sync. It may take long; nothing is held.
//     I am prepared.
//  3. Each guest that can makes its own snapshots, in one autonomous step that
//     it ends or undoes by itself, and reports one completion for each volume.
//     With one missing I go no further. I am guest-done, and nobody is held.
//  4. Where I span several arrays, they make their splits ready (armed). VMs that
//     can't snapshot themselves are paused, each under a guard that resumes it
//     whatever becomes of us; the volumes are split under my tag, what is armed
//     by a commit to all arrays at once; the VMs run again. Nothing was journaled
//     in between. I am split.
//  5. A worker looks into the split for each in-guest snapshot, by UUID. Now the
//     levels are decided, from that evidence, and the guests drop their
//     snapshots. I am verified.
//  6. Workers bring up clean views; the data plane's target serves them, read-only
//     and masked from the first moment. I am recovered, and then ready, under a
//     lease.
//  7. Somebody reads me. Asked to, I have a worker write the clean blocks into the
//     splits themselves, one VM after the other: what it will rewrite is journaled
//     before its first write, and the devices say how far it is, so I go on after a
//     crash. I am recovering, and ready again. Released, I give back everything I hold, newest first:
//     LUNs, views, splits (resynchronised), in-guest snapshots. The same undo
//     functions run when a step fails, and at the start after a crash.
package orchestrator
