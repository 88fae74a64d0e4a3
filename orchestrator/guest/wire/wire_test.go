package wire

import (
	"strings"
	"testing"
	"time"
)

const good = `{"v":1,"start":{"requester":"qemu-ga 7.2.0","at":"2026-11-22T18:00:00.5Z"}}
{"v":1,"phase":{"name":"looking","at":"2026-11-22T18:00:01Z"}}
{"v":1,"warning":"mind\nthe gap"}
{"v":1,"completion":{"volume":"vg/lv","volumeId":"a","group":"g","snapshot":"s","name":"vg/c","kind":"lvm-thick","began":"2026-11-22T18:00:01Z","ended":"2026-11-22T18:00:02Z","new":true}}
{"v":1,"writer":{"app":"postgresql","state":"stable","files":[{"name":"tablespace_map","content":"x"}]}}
{"v":1,"end":{"at":"2026-11-22T18:00:03Z"}}
`

func TestParse(t *testing.T) {
	r, err := Parse([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if r.Requester != "qemu-ga 7.2.0" || r.Finished.Sub(r.Started) != 2500*time.Millisecond || len(r.Completions) != 1 || !r.Completions[0].OK() ||
		r.Warnings[0] != "mind the gap" || r.Writers[0].Files[0].Name != "tablespace_map" || r.Phases[0].Name != "looking" {
		t.Errorf("%+v", r)
	}
}

// At every byte where a report may be cut it is unfinished or an error, never
// finished.
func TestParseOfABeginning(t *testing.T) {
	for n := range len(good) {
		if r, err := Parse([]byte(good[:n])); err == nil && !r.Finished.IsZero() {
			t.Fatalf("finished after %d of %d bytes", n, len(good))
		}
	}
}

func TestParseErrors(t *testing.T) {
	for name, text := range map[string]string{
		"version":   `{"v":2,"end":{}}` + "\n",
		"no json":   "rubbish\n",
		"nothing":   `{"v":1}` + "\n",
		"after end": good + good,
		"too long":  strings.Repeat(" ", MaxReport+1),
		"time":      `{"v":1,"end":{"at":"yesterday"}}` + "\n",
	} {
		if _, err := Parse([]byte(text)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestParseProbe(t *testing.T) {
	const probe = `{"v":1,"probe":{"cannot":"no\u001b[0m"}}
{"v":1,"volume":{"name":"vg/lv","uuid":"u","size":10,"free":5}}
{"v":1,"app":{"app":"postgresql","running":true}}
`
	if _, err := ParseProbe([]byte(probe)); err == nil {
		t.Error("a probe without an end")
	}
	p, err := ParseProbe([]byte(probe + `{"v":1,"end":{}}` + "\n"))
	if err != nil || p.Cannot != "no [0m" || len(p.Volumes) != 1 || !p.Apps[0].Running {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := ParseProbe([]byte(`{"v":1,"volume":{"size":-1}}` + "\n" + `{"v":1,"end":{}}` + "\n")); err == nil {
		t.Error("a negative size")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{"v":1,"probe":{}}` + "\n" + `{"v":1,"volume":{}}` + "\n" + `{"v":1,"end":{}}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Parse(b)
		if err == nil {
			for _, s := range append([]string{r.Requester, r.Failed}, r.Warnings...) {
				if strings.ContainsAny(s, "\x00\n\x1b\x7f") || len(s) > 600 {
					t.Errorf("not clean: %q", s)
				}
			}
		}
		ParseProbe(b)
	})
}
