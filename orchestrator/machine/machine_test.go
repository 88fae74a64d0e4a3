package machine

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/cleave-san/cleave/orchestrator"
)

var allEvents = []Event{Begin, Prepared, GuestDone, SplitDone, Verified, Recovered, HandedOver, Changed, Failed, ReleaseAsked, Restarted, RevertAsked, BreakAsked, InPlaceAsked, Turned, NotBegun, Undone}

func TestTheWayOfASetThatSucceeds(t *testing.T) {
	s := orchestrator.StatePlanned
	for _, row := range []struct {
		ev Event
		to orchestrator.State
		do Action
	}{
		{Begin, orchestrator.StatePlanned, Prepare},
		{Prepared, orchestrator.StatePrepared, Guest},
		{GuestDone, orchestrator.StateGuestDone, Split},
		{SplitDone, orchestrator.StateSplit, Verify},
		{Verified, orchestrator.StateVerified, Recover},
		{Recovered, orchestrator.StateRecovered, HandOver},
		{HandedOver, orchestrator.StateReady, Nothing},
		{ReleaseAsked, orchestrator.StateReleasing, Undo},
		{Undone, orchestrator.StateReleased, Nothing},
	} {
		to, do, err := Next(s, row.ev)
		if err != nil || to != row.to || do != row.do {
			t.Fatalf("Next(%s, %s) = %s, %s, %v; want %s, %s", s, row.ev, to, do, err, row.to, row.do)
		}
		s = to
	}
}

// TestSplitOnlyAfterGuestDone is C6 of the method: whatever happens, Split is
// asked for only by a GuestDone of the same attempt.
func TestSplitOnlyAfterGuestDone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := orchestrator.StatePlanned
		guestDone := false
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			ev := rapid.SampledFrom(allEvents).Draw(t, "event")
			to, do, err := Next(s, ev)
			if err != nil {
				if to != s || do != Nothing {
					t.Fatalf("refused event %s moved %s to %s, %s", ev, s, to, do)
				}
				continue
			}
			switch {
			case to == orchestrator.StatePlanned:
				guestDone = false // a new attempt
			case ev == GuestDone:
				guestDone = true
			}
			if do == Split && !(guestDone && ev == GuestDone) {
				t.Fatalf("Next(%s, %s) asks for the split without a completed guest step", s, ev)
			}
			s = to
		}
	})
}

// TestEveryStateEnds: from any state that can be reached, asking for release
// (and the undoing that follows) ends in released or aborted.
func TestEveryStateEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := orchestrator.StatePlanned
		for range rapid.IntRange(0, 40).Draw(t, "events") {
			if to, _, err := Next(s, rapid.SampledFrom(allEvents).Draw(t, "event")); err == nil {
				s = to
			}
		}
		if s.Final() {
			return
		}
		to, do, err := Next(s, ReleaseAsked)
		if err != nil || do != Undo {
			t.Fatalf("Next(%s, release-asked) = %s, %s, %v; want an undo", s, to, do, err)
		}
		if end, _, err := Next(to, Undone); err != nil || !end.Final() {
			t.Fatalf("Next(%s, undone) = %s, %v; want a final state", to, end, err)
		}
	})
}

// TestRestart is what the engine relies on at start: unfinished work is undone,
// what is ready stays.
func TestRestart(t *testing.T) {
	for s, want := range map[orchestrator.State]orchestrator.State{
		orchestrator.StatePlanned:    orchestrator.StateAborting,
		orchestrator.StatePrepared:   orchestrator.StateAborting,
		orchestrator.StateGuestDone:  orchestrator.StateAborting,
		orchestrator.StateSplit:      orchestrator.StateAborting,
		orchestrator.StateVerified:   orchestrator.StateAborting,
		orchestrator.StateRecovered:  orchestrator.StateAborting,
		orchestrator.StateRetrying:   orchestrator.StateAborting,
		orchestrator.StateAborting:   orchestrator.StateAborting,
		orchestrator.StateReleasing:  orchestrator.StateReleasing,
		orchestrator.StateReady:      orchestrator.StateReady,
		orchestrator.StateReverting:  orchestrator.StateReverting,
		orchestrator.StateBreaking:   orchestrator.StateBreaking,
		orchestrator.StateRecovering: orchestrator.StateRecovering,
	} {
		if to, _, err := Next(s, Restarted); err != nil || to != want {
			t.Errorf("Next(%s, restarted) = %s, %v; want %s", s, to, err, want)
		}
	}
}
