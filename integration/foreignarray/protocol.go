package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"
)

// What docs/provider-program.md says, as far as this array needs it.
type (
	request struct {
		Version int    `json:"cleave"`
		ID      string `json:"id"`
		Call    string `json:"call"`
		Args    args   `json:"args"`
	}
	args struct {
		Path     string   `json:"path"`
		IQN      string   `json:"iqn"`
		LUN      uint64   `json:"lun"`
		Tag      string   `json:"tag"`
		Volumes  []string `json:"volumes"`
		Snapshot string   `json:"snapshot"`
		Writable bool     `json:"writable"`
	}
	reply struct {
		ID     string   `json:"id"`
		Result any      `json:"result,omitempty"`
		Error  *failure `json:"error,omitempty"`
	}
	failure struct {
		Kind    string `json:"kind"`
		Message string `json:"message"`
	}
	snapshot struct {
		ID     string    `json:"id"`
		Tag    string    `json:"tag"`
		Volume string    `json:"volume"`
		Size   int64     `json:"size"`
		Method string    `json:"method"`
		State  string    `json:"state"`
		At     time.Time `json:"at"`
	}
	path struct {
		Portals  []string `json:"portals"`
		IQN      string   `json:"iqn"`
		LUN      uint64   `json:"lun"`
		Writable bool     `json:"writable"`
	}
)

func (f *failure) Error() string { return f.Kind + ": " + f.Message }

func fail(kind, format string, args ...any) error {
	return &failure{kind, fmt.Sprintf(format, args...)}
}

// serve answers requests line by line until there are no more: one where the
// program is started for each, many where it is kept.
func (s store) serve(in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	answers := json.NewEncoder(out)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fmt.Errorf("request: %w", err)
		}
		a := reply{ID: r.ID}
		var err error
		if r.Version != 1 {
			err = fail("not-supported", "this program speaks version 1 of the protocol")
		} else {
			a.Result, err = s.answer(r)
		}
		if err != nil {
			f, ok := err.(*failure)
			if !ok { // what it did by then is for lookup to find out
				fmt.Fprintln(os.Stderr, r.Call+":", err)
				f = &failure{"outcome-unknown", err.Error()}
			}
			a.Result, a.Error = nil, f
		}
		if err := answers.Encode(a); err != nil {
			return err
		}
	}
	return lines.Err()
}

// answer makes one call.
func (s store) answer(r request) (any, error) {
	if r.Call == "describe" {
		return map[string]any{
			"provider": "foreignarray", "version": "1", "snapshot": true, "serve": true,
			"calls": []string{"describe", "resolve", "prepare", "split", "lookup", "delete", "open", "expose", "unexpose"},
		}, nil
	}
	over, err := s.lock()
	if err != nil {
		return nil, err
	}
	defer over()
	a := r.Args
	switch r.Call {
	case "resolve":
		return s.resolve(a)
	case "prepare":
		for _, v := range a.Volumes {
			if _, err := s.size(v); err != nil {
				return nil, err
			}
		}
		return struct{}{}, nil
	case "split":
		if len(a.Volumes) != 1 {
			return nil, fail("not-supported", "%d volumes are not split at one instant", len(a.Volumes))
		}
		return s.split(a.Tag, a.Volumes[0])
	case "lookup":
		return s.lookup(a.Tag)
	case "delete":
		return struct{}{}, s.delete(a.Snapshot)
	case "open":
		_, err := s.find(a.Snapshot)
		return map[string]string{"path": s.file(a.Snapshot, ".raw")}, err
	case "expose":
		return s.expose(a.Snapshot, a.Writable)
	case "unexpose":
		return struct{}{}, s.unexpose(a.Snapshot)
	}
	return nil, fail("not-supported", "this program doesn't know %s", r.Call)
}
