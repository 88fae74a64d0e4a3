package embedded

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cleave-san/cleave/lun"
)

func TestEventsAreKept(t *testing.T) {
	o := options(testDir(t))
	a := open(t, o)
	create(t, a, "db", mib, "a") // one mirror: an event
	a.Note(Event{Kind: "test", Text: "first"})
	a.Note(Event{Kind: "test", Severity: Error, Name: "db", Text: "second"})
	before := a.Events(EventFilter{})
	if len(before) != 3 || before[0].Kind != Unmirrored || before[0].Severity != Warning {
		t.Fatalf("%+v", before)
	}
	a.Close()

	a = open(t, o)
	a.Note(Event{Kind: "test", Text: "third"})
	all := a.Events(EventFilter{})
	if len(all) != 4 || !slices.Equal(all[:3], before) || all[3].Seq != before[2].Seq+1 {
		t.Fatalf("after a restart: %+v", all)
	}
	for name, c := range map[string]struct {
		f    EventFilter
		want []int
	}{
		"after":    {EventFilter{After: all[1].Seq}, []int{2, 3}},
		"since":    {EventFilter{Since: all[3].At}, []int{3}},
		"volume":   {EventFilter{Volume: "db"}, []int{0, 2}},
		"id":       {EventFilter{Volume: string(all[0].Volume)}, []int{0}},
		"severity": {EventFilter{Severity: Error}, []int{2}},
		"none":     {EventFilter{Since: all[3].At.Add(time.Hour)}, nil},
	} {
		var want []Event
		for _, i := range c.want {
			want = append(want, all[i])
		}
		if got := a.Events(c.f); !slices.Equal(got, want) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}

func TestEventLogIsBounded(t *testing.T) {
	o := options(testDir(t))
	a := open(t, o)
	const n = 3 * keptEvents
	for i := range n {
		a.Note(Event{Kind: "test", Text: fmt.Sprintf("number %d", i)})
		if i%1000 == 0 { // so that it is written in more than one piece
			eventually(t, "the log is written", func() bool {
				a.events.mu.Lock()
				defer a.events.mu.Unlock()
				return len(a.events.queue) == 0
			})
		}
	}
	a.Close()
	lines := 0
	for _, name := range []string{"events.log", "events.log.1"} {
		b, err := os.ReadFile(filepath.Join(o.StateDir, name))
		if err != nil {
			t.Fatal(err)
		}
		lines += strings.Count(string(b), "crc32c")
	}
	if lines > n {
		t.Errorf("the log has %d lines", lines)
	}
	a = open(t, o)
	got := a.Events(EventFilter{})
	if len(got) > keptEvents || len(got) < keptEvents/2 || got[len(got)-1].Text != fmt.Sprintf("number %d", n-1) {
		t.Fatalf("%d events, the last %+v", len(got), got[len(got)-1])
	}
}

// What a power cut tore, or somebody wrote into the log, is left out.
func TestEventLogDamaged(t *testing.T) {
	o := options(testDir(t))
	a := open(t, o)
	for i := range 3 {
		a.Note(Event{Kind: "test", Text: fmt.Sprintf("number %d", i)})
	}
	a.Close()
	path := filepath.Join(o.StateDir, "events.log")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[strings.Index(string(b), "number 1")] ^= 1
	b = append(b, "\x00\x00\x00 1 crc32c=00000000 {}\n\xff torn"...)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		a = open(t, o)
		a.Note(Event{Kind: "test", Text: "after"})
		got := a.Events(EventFilter{})
		if len(got) != 3+round || got[0].Text != "number 0" || got[1].Text != "number 2" || got[1].Seq != 3 || got[2].Seq != 4 {
			t.Fatalf("round %d: %+v", round, got)
		}
		a.Close()
	}
}

// A log that can't be written costs nothing but the log.
func TestEventLogOnFullDisk(t *testing.T) {
	o, fs, ev := faulty(t)
	a := open(t, o)
	fs.set(func(op, path string) error {
		if op == "write" && strings.HasSuffix(path, "events.log") {
			return syscall.ENOSPC
		}
		return nil
	})
	a.Note(Event{Kind: "test", Text: "lost on disk"})
	eventually(t, "it is told", func() bool { return ev.count("test") == 1 })
	fs.set(nil)
	a.Note(Event{Kind: "test", Text: "kept"})
	a.Close()
	a = open(t, o)
	if got := a.Events(EventFilter{}); len(got) != 1 || got[0].Text != "kept" {
		t.Fatalf("%+v", got)
	}
}

// While a split has the volumes' locks nothing is written to the log.
func TestEventsWaitForTheInstant(t *testing.T) {
	o, fs, ev := faulty(t)
	a := open(t, o)
	a.events.hold()
	written := make(chan string, 10)
	fs.set(func(op, path string) error {
		if op == "write" && strings.HasSuffix(path, "events.log") {
			written <- path
		}
		return nil
	})
	a.Note(Event{Kind: "test", Text: "held"}) // does not wait
	select {
	case <-written:
		t.Fatal("the log was written during the hold")
	default:
	}
	a.events.unhold()
	<-written
	eventually(t, "it is told", func() bool { return ev.count("test") == 1 })
}

func FuzzEventLine(f *testing.F) {
	line, err := encodeEvent(Event{Seq: 1, Kind: "test", Mirror: lun.NewIdentity(), Text: "a line"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	f.Add([]byte("1 crc32c=00000000 {}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, ok := decodeEvent(b)
		if !ok {
			return
		}
		again, err := encodeEvent(e)
		if err != nil {
			t.Skip("a time that JSON can't have")
		}
		if x, ok := decodeEvent(again); !ok || x.Text != e.Text || x.Seq != e.Seq {
			t.Fatalf("%q became %q", b, again)
		}
	})
}
