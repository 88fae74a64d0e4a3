package cli

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/cleave-san/cleave/orchestrator"
)

// story is the order of the states that a set passes on its way to ready.
var story = []orchestrator.State{
	orchestrator.StatePlanned, orchestrator.StatePrepared, orchestrator.StateGuestDone, orchestrator.StateSplit,
	orchestrator.StateVerified, orchestrator.StateRecovered, orchestrator.StateReady,
}

// progress tells a person on stderr how a set moves on: a bar under the events
// on a terminal, plain lines elsewhere.
type progress struct {
	event func(orchestrator.Event)
	end   func() // exactly once
}

func (a *app) progress(id orchestrator.SetID) progress {
	line := func(e orchestrator.Event) string {
		text := e.Text
		if text == string(e.State) { // it has nothing to add
			text = ""
		}
		return printable(strings.TrimRight(fmt.Sprintf("%s  %-10s %s", fine(e.At), e.State, text), " "))
	}
	say(a.Err, "cleave", fmt.Sprintf("snapshot set %s has begun", id))
	if !a.ErrTerminal {
		return progress{
			event: func(e orchestrator.Event) { fmt.Fprintln(a.Err, line(e)) },
			end:   func() {},
		}
	}
	var mu sync.Mutex
	now := string(orchestrator.StatePlanned)
	pool := mpb.New(mpb.WithOutput(a.Err), mpb.WithWidth(40), mpb.WithAutoRefresh())
	bar := pool.AddBar(int64(len(story)),
		mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string {
			mu.Lock()
			defer mu.Unlock()
			return now
		}, decor.WC{W: 12, C: decor.DindentRight})),
		mpb.AppendDecorators(decor.Elapsed(decor.ET_STYLE_GO)),
	)
	return progress{
		event: func(e orchestrator.Event) {
			mu.Lock()
			now = string(e.State)
			mu.Unlock()
			fmt.Fprintln(pool, line(e))
			// The last cell stays open: the bar ends with the wait, not before.
			if i := slices.Index(story, e.State); i >= 0 && i < len(story)-1 {
				bar.SetCurrent(int64(i + 1))
			}
		},
		end: func() { bar.Abort(true); pool.Wait() },
	}
}
