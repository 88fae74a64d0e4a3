package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
)

// Event is something that happened at the array without having been asked for.
// Seq goes on over restarts.
type Event struct {
	Seq      uint64    `json:"seq"`
	At       time.Time `json:"at"`
	Kind     string    `json:"kind"`
	Severity string    `json:"severity"` // info, warning, error
	Volume   string    `json:"volume,omitempty"`
	Pool     string    `json:"pool,omitempty"`
	Text     string    `json:"text"`
}

// EventQuery says which events are asked for; the zero value is all.
type EventQuery struct {
	After    uint64    // only those of a higher Seq
	Since    time.Time // only those of this time or later
	Volume   string    // only those of this volume
	Severity string    // only those that matter at least so much
}

// eventPace is how often --follow asks for more.
const eventPace = time.Second

func (a *app) arrayEventsCommand() *cobra.Command {
	var q EventQuery
	var since string
	var follow bool
	c := &cobra.Command{
		Use:   "events",
		Short: "Show what happened at the array",
		Long: `Show what happened at the array without having been asked for: mirrors that
failed or came back, pools that ran short of room, resyncs that ended. Events are
kept over restarts, the oldest go first.

With --follow it goes on until it is interrupted, over restarts of the array as
well; -o json is then one object a line.`,
		Example: `  cleave array events --since 24h --severity warning
  cleave array events --volume db --since 2026-01-31T08:00:00Z
  cleave array events --follow -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if q.Since, err = parseSince(since, time.Now()); err != nil {
				return err
			}
			switch q.Severity {
			case "", "info", "warning", "error":
			default:
				return usagef("--severity %.40q: want info, warning or error", q.Severity)
			}
			if follow && a.output == formatYAML {
				return usagef("--follow with -o yaml: want table, wide, json or name")
			}
			if follow {
				return a.followEvents(c.Context(), q)
			}
			return a.withStorage(func(s Storage) error {
				es, err := s.Events(c.Context(), q)
				if err != nil {
					return err
				}
				return a.print(eventsResult(es))
			})
		},
	}
	f := c.Flags()
	f.StringVar(&since, "since", "", "only from this time on: RFC 3339, a date, or how long ago as in 90m or 24h")
	f.StringVar(&q.Volume, "volume", "", "only those of this volume")
	f.StringVar(&q.Severity, "severity", "", "only those that matter at least so much: info, warning or error")
	f.BoolVarP(&follow, "follow", "f", false, "wait for more")
	return c
}

// parseSince reads a time, a date (in UTC), or how long before now.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, form := range []string{time.RFC3339Nano, time.DateOnly} {
		if t, err := time.Parse(form, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usagef("--since %.40q: want a time as 2026-01-31T08:00:00Z, a date, or how long ago as 90m", s)
}

func eventsResult(es []Event) result {
	var names []string
	for _, e := range es {
		names = append(names, fmt.Sprint(e.Seq))
	}
	return result{value: list("events", es), names: names, text: func(w io.Writer, p *paper) error {
		t := table{head: []string{"+SEQ", "AT", "SEVERITY", "KIND", "VOLUME", "POOL", "TEXT"}}
		for _, e := range es {
			t.add(fmt.Sprint(e.Seq), clock(e.At), e.Severity, e.Kind, e.Volume, e.Pool, e.Text)
		}
		p.draw(w, t)
		return nil
	}}
}

// followEvents prints events until ctx ends, which is success. An array that
// goes away after it answered once is waited for.
func (a *app) followEvents(ctx context.Context, q EventQuery) error {
	tick := time.NewTicker(eventPace)
	defer tick.Stop()
	for answered, away := false, false; ; {
		var es []Event
		err := a.withStorage(func(s Storage) (err error) {
			es, err = s.Events(ctx, q)
			return err
		})
		code, _ := exitOf(err)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !(answered && code == ExitUnreachable):
			return err
		case err != nil && !away:
			say(a.Err, "cleave", err.Error()+"; waiting for it")
		}
		away, answered = err != nil, answered || err == nil
		for _, e := range es {
			if err := a.printEvent(e); err != nil {
				return fmt.Errorf("printing an event: %w", err)
			}
			q.After = max(q.After, e.Seq)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// printEvent prints one event as a line.
func (a *app) printEvent(e Event) (err error) {
	switch a.output {
	case formatJSON:
		enc := json.NewEncoder(a.Out)
		enc.SetEscapeHTML(false)
		return enc.Encode(e)
	case formatName:
		_, err = fmt.Fprintln(a.Out, e.Seq)
	default:
		_, err = fmt.Fprintf(a.Out, "%s  %-7s  %-15s  %s\n", clock(e.At), printable(e.Severity), printable(e.Kind), printable(e.Text))
	}
	return err
}
