package dataplane

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/iscsi/mask"
)

// TestNumbersComeRound: a LUN number is given again only after all others.
func TestNumbersComeRound(t *testing.T) {
	r := &record{Next: 1}
	seen := map[int]bool{}
	any := func(int) bool { return true }
	for range mask.MaxLUN {
		n, err := r.number(any)
		if err != nil || seen[n] || n < 1 || n > mask.MaxLUN {
			t.Fatalf("number %d, seen %v, %v", n, seen[n], err)
		}
		seen[n] = true
	}
	r.LUNs = []lunRecord{{Number: 1}, {Number: 2}}
	if n, err := r.number(any); n != 3 || err != nil {
		t.Errorf("after all: %d, %v", n, err)
	}
	if n, err := r.number(func(n int) bool { return n == 77 }); n != 77 || err != nil {
		t.Errorf("the one that nobody remembers: %d, %v", n, err)
	}
	if n, err := r.number(func(int) bool { return false }); err == nil {
		t.Errorf("none is usable: %d", n)
	}
}

func TestDamagedRecord(t *testing.T) {
	for text, want := range map[string]string{
		"{": "target.json", `{"version":99}`: "version 99",
	} {
		c := config(t)
		if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(c.StateDir, "target.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := Run(t.Context(), c, nil)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// TestConfiguration: what is missing or in the way is named in one line, and
// nothing is left running.
func TestConfiguration(t *testing.T) {
	busy := config(t)
	busy.Portals = append(busy.Portals[:0:0], Portal{Addr: port(t)})
	_, stop := run(t, busy)
	defer stop()
	for want, change := range map[string]func(*Config){
		"no state":                  func(c *Config) { c.StateDir = "" },
		"no pool":                   func(c *Config) { c.Pools = nil },
		"no portal":                 func(c *Config) { c.Portals = nil },
		"no control socket":         func(c *Config) { c.Socket = "" },
		"target's name":             func(c *Config) { c.IQN = "cleave" },
		"address already in use":    func(c *Config) { c.Portals = busy.Portals },
		"another data plane":        func(c *Config) { c.Socket = busy.Socket },
		"path of a socket":          func(c *Config) { c.Socket += strings.Repeat("x", 100) },
		"is there and is no socket": func(c *Config) { os.WriteFile(c.Socket, nil, 0o600) },
	} {
		c := config(t)
		change(&c)
		err := Run(t.Context(), c, nil)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}
