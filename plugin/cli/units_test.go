package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/orchestrator"
)

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"512": 512, "0": 0, "1K": 1024, "20GiB": 20 << 30, "20G": 20 << 30, "20gb": 20 << 30, "1.5TiB": 3 << 39, "7 MiB": 7 << 20,
		"9223372036854775807": math.MaxInt64, "8388607TiB": 8388607 << 40, "3B": 3,
	} {
		if got, err := parseSize(in); got != want || err != nil {
			t.Errorf("parseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "G", "-1", "-1G", "1.3K", "8388608TiB", "9223372036854775808", "1e30G", "NaN", "InfG", "12 parsecs", "0x10", "1GiBs", "1GG"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", in, got)
		} else if code, _ := exitOf(err); code != ExitUsage {
			t.Errorf("parseSize(%q): exit status %d", in, code)
		}
	}
}

func TestSizeForPeople(t *testing.T) {
	for in, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", 20 << 30: "20 GiB", 3 << 39: "1.5 TiB", -1: "-1 B"} {
		if got := size(in); got != want {
			t.Errorf("size(%d) = %q, want %q", in, got, want)
		}
	}
}

// TestExitTable: every error of the orchestrator and every kind of an array's
// error has its place.
func TestExitTable(t *testing.T) {
	for err, want := range map[error]int{
		nil: ExitOK, errors.New("x"): ExitFailed,
		orchestrator.ErrUsage: ExitUsage, orchestrator.ErrLevel: ExitPartial, orchestrator.ErrNotFound: ExitNotFound,
		orchestrator.ErrBusy: ExitBusy, orchestrator.ErrTimeout: ExitTimeout, context.DeadlineExceeded: ExitTimeout,
		orchestrator.ErrUnreachable: ExitUnreachable, orchestrator.ErrNotPermitted: ExitNotPermitted,
		os.ErrNotExist: ExitNotFound, os.ErrPermission: ExitNotPermitted, context.Canceled: ExitFailed,
		status(42): 42,
	} {
		if got, _ := exitOf(err); got != want {
			t.Errorf("%v: exit status %d, want %d", err, got, want)
		}
		if err != nil {
			if got, _ := exitOf(hint(fmt.Errorf("what: %w", err), "do")); got != want {
				t.Errorf("%v, wrapped: exit status %d, want %d", err, got, want)
			}
		}
	}
	for kind, want := range map[driver.Kind]int{
		driver.Unknown: ExitFailed, driver.NotMine: ExitNotFound, driver.NotFound: ExitNotFound, driver.Ambiguous: ExitFailed,
		driver.Busy: ExitBusy, driver.NeedsConsent: ExitNotPermitted, driver.NotSynchronized: ExitFailed, driver.NoSpace: ExitFailed,
		driver.NotSupported: ExitUsage, driver.NotPermitted: ExitNotPermitted, driver.InvalidRequest: ExitUsage,
		driver.Unreachable: ExitUnreachable, driver.OutcomeUnknown: ExitUnreachable,
	} {
		for _, err := range []error{driver.Errorf(kind, "x"), &arrays.Error{Kind: kind, Err: errors.New("x")}} {
			if got, _ := exitOf(err); got != want {
				t.Errorf("kind %v: exit status %d, want %d", kind, got, want)
			}
		}
	}
}

func TestHintNearestTheCauseWins(t *testing.T) {
	err := hint(fmt.Errorf("outer: %w", hint(orchestrator.ErrBusy, "near")), "far")
	if _, next := exitOf(err); next != "near" {
		t.Errorf("hint %q, want the one nearest the cause", next)
	}
	if _, next := exitOf(orchestrator.ErrBusy); next == "" {
		t.Error("no hint from the table")
	}
	if hint(nil, "x") != nil {
		t.Error("a hint made an error")
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("db\x1b[2J\x00\u202e\xff")
	f.Fuzz(func(t *testing.T, s string) {
		if i := strings.IndexFunc(printable(s), func(r rune) bool { return r != unicode.ReplacementChar && !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("printable(%q) lets something through at %d", s, i)
		}
	})
}

func TestURLs(t *testing.T) {
	l := orchestrator.LUN{Socket: "/run/a b/v&w.sock", Export: "db/vda ü", Portals: []string{"[::1]:3260"}, IQN: "iqn.2026-01.a:b", LUN: 3}
	if got, want := nbdURL(l), "nbd+unix:///db/vda%20%C3%BC?socket=%2Frun%2Fa+b%2Fv%26w.sock"; got != want {
		t.Errorf("nbdURL: %s, want %s", got, want)
	}
	if got, want := iscsiURL(l), "iscsi://[::1]:3260/iqn.2026-01.a:b/3"; got != want {
		t.Errorf("iscsiURL: %s, want %s", got, want)
	}
	if got := nbdURL(orchestrator.LUN{}) + iscsiURL(orchestrator.LUN{}); got != "" {
		t.Errorf("a LUN that nobody sees has the URL %q", got)
	}
}

func TestShortDurations(t *testing.T) {
	for in, want := range map[time.Duration]string{
		0: "0s", 412: "412ns", 41234: "41µs", 12345678: "12.3ms", -12345678: "-12.3ms", 1234567890: "1.23s", 90 * time.Second: "1m30s",
	} {
		if got := short(in); got != want {
			t.Errorf("short(%d) = %q, want %q", in, got, want)
		}
	}
}

// TestProgressOnATerminal: events stay on the screen, in order, and nothing runs
// on after the end.
func TestProgressOnATerminal(t *testing.T) {
	var out bytes.Buffer
	a := &app{Streams: Streams{Err: &out, ErrTerminal: true}}
	p := a.progress("set-0123456789abcdef")
	for i, s := range story {
		p.event(orchestrator.Event{At: at(i), State: s, Text: "step " + string(s)})
	}
	p.end()
	last := -1
	for _, s := range story {
		i := strings.Index(out.String(), "step "+string(s))
		if i <= last {
			t.Errorf("event %s is missing or out of order in %q", s, out.String())
		}
		last = i
	}
}
