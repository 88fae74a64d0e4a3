package stage

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cleave-san/cleave/orchestrator"
)

// Volume is what a test wants to know of a volume.
type Volume struct {
	Name      string   `json:"name"`
	State     string   `json:"state"`
	Snapshots []string `json:"snapshots"`
}

// Volumes lists the array's volumes.
func (s *Stage) Volumes(ctx context.Context) ([]Volume, error) {
	var l struct {
		Volumes []Volume `json:"volumes"`
	}
	err := s.json(ctx, &l, "volume", "list")
	return l.Volumes, err
}

// Seen names the LUNs that an initiator sees.
func (s *Stage) Seen(ctx context.Context, iqn string) ([]string, error) {
	var l struct {
		Initiators []struct {
			IQN  string   `json:"iqn"`
			LUNs []string `json:"luns"`
		} `json:"initiators"`
	}
	if err := s.json(ctx, &l, "initiator", "list"); err != nil {
		return nil, err
	}
	for _, i := range l.Initiators {
		if i.IQN == iqn {
			return i.LUNs, nil
		}
	}
	return nil, fmt.Errorf("initiator %s is not known", iqn)
}

func (s *Stage) json(ctx context.Context, into any, args ...string) error {
	out, err := s.Cleave(ctx, append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("cleave %s: %w in %.200q", strings.Join(args, " "), err, out)
	}
	return nil
}

// Wait polls a set until it is ready or final.
func (s *Stage) Wait(ctx context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	for {
		set, err := s.Set(ctx, "snapshot", "show", string(id))
		if err != nil || set.State.Final() || set.State == orchestrator.StateReady {
			return set, err
		}
		select {
		case <-ctx.Done():
			return set, fmt.Errorf("set %s is still %s: %w", id, set.State, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Workers lists the worker, lender and guard processes of the stage's program.
func (s *Stage) Workers() []string {
	var out []string
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	for _, d := range dirs {
		b, err := os.ReadFile(filepath.Join(d, "cmdline"))
		if err != nil {
			continue // it has ended
		}
		line := strings.ReplaceAll(strings.TrimRight(string(b), "\x00"), "\x00", " ")
		exe, err := os.Readlink(filepath.Join(d, "exe"))
		if err == nil && exe == s.o.Exe && (strings.Contains(line, " worker ") || strings.Contains(line, " guard ") || strings.HasSuffix(line, " lend")) {
			out = append(out, line)
		}
	}
	return out
}
