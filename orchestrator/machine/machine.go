// Package machine is the life of a snapshot set as a pure function: from a
// state and an event to the next state and the one action to take there.
//
// It knows no clock, no array and no guest, so every rule about order is here
// to be read and tested: above all that the split is asked for only after every
// guest has reported completion in the same attempt (claim 1 of EP 2 016 501),
// and that from every state there is a way to released or aborted that gives
// everything back.
//
// The engine journals the state that Next returns before it takes the action,
// and feeds the action's outcome back as the next event. After a crash it feeds
// Restarted to every set that is not final.
package machine

import (
	"fmt"

	"github.com/cleave-san/cleave/orchestrator"
)

// Event is what happened to a set.
type Event string

const (
	Begin        Event = "begin"          // the set was taken on
	Prepared     Event = "prepared"       // mirrors are in sync, components chosen
	GuestDone    Event = "guest-done"     // every guest that snapshots itself has reported every volume
	SplitDone    Event = "split-done"     // the group split is durable, and paused VMs run again
	Verified     Event = "verified"       // identities and in-guest snapshots checked in the splits
	Recovered    Event = "recovered"      // clean views are up
	HandedOver   Event = "handed-over"    // LUNs are exposed as asked, lease begun
	Changed      Event = "changed"        // a VM changed its state; attempts are left
	Failed       Event = "failed"         // the action failed, for good
	ReleaseAsked Event = "release-asked"  // somebody wants it given back, or the lease ran out
	Restarted    Event = "restarted"      // the engine came up again
	RevertAsked  Event = "revert-asked"   // somebody wants the volumes put back to it
	BreakAsked   Event = "break-asked"    // somebody wants its splits for good
	InPlaceAsked Event = "in-place-asked" // somebody wants its splits themselves clean
	Turned       Event = "turned"         // every split was reverted to, broken off, or recovered in place
	NotBegun     Event = "not-begun"      // nothing of a recovery in place could be begun
	Undone       Event = "undone"         // everything held was given back
)

// Action is what the engine does in a state.
type Action string

const (
	Nothing  Action = "nothing"
	Prepare  Action = "prepare"
	Guest    Action = "guest"            // the guest step of every no-downtime VM
	Split    Action = "split"            // pause, group split, resume
	Verify   Action = "verify"           // check the splits; then guests drop their snapshots
	Recover  Action = "recover"          // bring up clean views
	HandOver Action = "handover"         // expose, start the lease
	Revert   Action = "revert"           // put the volumes back, one after the other
	Break    Action = "break"            // make the splits volumes, one after the other
	InPlace  Action = "recover in place" // write clean blocks into the splits, one VM after the other
	Undo     Action = "undo"             // give back everything that is held, newest first
)

type step struct {
	to orchestrator.State
	do Action
}

// forward is the way of a set that succeeds. What is not here is either one of
// the ways back (see Next) or not allowed.
var forward = map[orchestrator.State]map[Event]step{
	orchestrator.StatePlanned: {
		Begin:    {orchestrator.StatePlanned, Prepare},
		Prepared: {orchestrator.StatePrepared, Guest},
	},
	orchestrator.StatePrepared: {
		GuestDone: {orchestrator.StateGuestDone, Split},
	},
	orchestrator.StateGuestDone: {
		SplitDone: {orchestrator.StateSplit, Verify},
	},
	orchestrator.StateSplit: {
		Verified: {orchestrator.StateVerified, Recover},
	},
	orchestrator.StateVerified: {
		Recovered: {orchestrator.StateRecovered, HandOver},
	},
	orchestrator.StateRecovered: {
		HandedOver: {orchestrator.StateReady, Nothing},
	},
	orchestrator.StateReady: {
		ReleaseAsked: {orchestrator.StateReleasing, Undo},
		Restarted:    {orchestrator.StateReady, Nothing},
		RevertAsked:  {orchestrator.StateReverting, Revert},
		BreakAsked:   {orchestrator.StateBreaking, Break},
		InPlaceAsked: {orchestrator.StateRecovering, InPlace},
	},
	// A recovery in place of which nothing is written leaves the set as it was.
	// Otherwise it is as with the next two, but that the set lives on.
	orchestrator.StateRecovering: {
		Turned:       {orchestrator.StateReady, Nothing},
		NotBegun:     {orchestrator.StateReady, Nothing},
		Failed:       {orchestrator.StateRecovering, Nothing},
		InPlaceAsked: {orchestrator.StateRecovering, InPlace},
		Restarted:    {orchestrator.StateRecovering, InPlace},
		ReleaseAsked: {orchestrator.StateReleasing, Undo},
	},
	// There is no way back from the first volume that was put back, or split that
	// was broken off: a failure waits to be asked again, a restart goes on, and
	// whoever wants neither has the rest given back.
	orchestrator.StateReverting: {
		Turned:       {orchestrator.StateReleasing, Undo},
		Failed:       {orchestrator.StateReverting, Nothing},
		RevertAsked:  {orchestrator.StateReverting, Revert},
		Restarted:    {orchestrator.StateReverting, Revert},
		ReleaseAsked: {orchestrator.StateReleasing, Undo},
	},
	orchestrator.StateBreaking: {
		Turned:       {orchestrator.StateReleasing, Undo},
		Failed:       {orchestrator.StateBreaking, Nothing},
		BreakAsked:   {orchestrator.StateBreaking, Break},
		Restarted:    {orchestrator.StateBreaking, Break},
		ReleaseAsked: {orchestrator.StateReleasing, Undo},
	},
	orchestrator.StateReleasing: {
		Undone:    {orchestrator.StateReleased, Nothing},
		Restarted: {orchestrator.StateReleasing, Undo},
	},
	orchestrator.StateRetrying: {
		Undone: {orchestrator.StatePlanned, Prepare},
	},
	orchestrator.StateAborting: {
		Undone:    {orchestrator.StateAborted, Nothing},
		Restarted: {orchestrator.StateAborting, Undo},
	},
}

// retryable are the states from which a VM's change of state starts the attempt
// again: from the guest step to the split.
var retryable = map[orchestrator.State]bool{
	orchestrator.StatePrepared:  true,
	orchestrator.StateGuestDone: true,
	orchestrator.StateSplit:     true,
}

// underway are the states in which a failure, a request to release or a restart
// of the engine leads to aborting.
var underway = map[orchestrator.State]bool{
	orchestrator.StatePlanned:   true,
	orchestrator.StatePrepared:  true,
	orchestrator.StateGuestDone: true,
	orchestrator.StateSplit:     true,
	orchestrator.StateVerified:  true,
	orchestrator.StateRecovered: true,
	orchestrator.StateRetrying:  true,
}

// Next returns where ev leads from s and what to do there. An event that makes
// no sense in s is an error, and the set stays where it is: an engine that gets
// one has a defect.
func Next(s orchestrator.State, ev Event) (orchestrator.State, Action, error) {
	if st, ok := forward[s][ev]; ok {
		return st.to, st.do, nil
	}
	switch ev {
	case Changed:
		if retryable[s] {
			return orchestrator.StateRetrying, Undo, nil
		}
	case Failed, ReleaseAsked, Restarted:
		if underway[s] {
			return orchestrator.StateAborting, Undo, nil
		}
		if s == orchestrator.StateAborting || s == orchestrator.StateReleasing {
			// Asked once more, or the undoing failed for now: it is repeated.
			return s, Undo, nil
		}
	default: // the forward table had every place where it is allowed
	}
	return s, Nothing, fmt.Errorf("snapshot set in state %q: event %q is not allowed", s, ev)
}
