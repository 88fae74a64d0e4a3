package process

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"testing"
)

func sleeper(t *testing.T) (*exec.Cmd, Process) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p, err := Of(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return cmd, p
}

func TestLife(t *testing.T) {
	cmd, p := sleeper(t)
	if alive, err := p.Alive(); !alive || err != nil {
		t.Errorf("alive %v, %v", alive, err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Wait(over); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting for one that lives: %v", err)
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if alive, err := p.Alive(); alive || err != nil {
		t.Errorf("killed and not reaped: alive %v, %v", alive, err)
	}
	_ = cmd.Wait()
	for range 2 {
		if err := errors.Join(p.Kill(t.Context()), p.Wait(t.Context())); err != nil {
			t.Error(err)
		}
	}
	if _, err := Of(cmd.Process.Pid); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the name of one that is gone: %v", err)
	}
}

// TestStrangers: a name whose PID now belongs to another process.
func TestStrangers(t *testing.T) {
	_, p := sleeper(t)
	for _, other := range []Process{
		{PID: p.PID, Start: p.Start - 1, Boot: p.Boot},
		{PID: p.PID, Start: p.Start, Boot: "another boot"},
		{PID: 1, Boot: p.Boot}, {},
	} {
		if fd, err := other.Open(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%+v: descriptor %d, %v", other, fd, err)
		}
		if err := other.Kill(t.Context()); err != nil {
			t.Errorf("%+v: %v", other, err)
		}
	}
	if alive, err := p.Alive(); !alive || err != nil {
		t.Errorf("a stranger was killed: alive %v, %v", alive, err)
	}
}

func TestSelf(t *testing.T) {
	p, err := Of(os.Getpid())
	if err != nil || p.PID != os.Getpid() || p.Start == 0 || p.Boot == "" {
		t.Errorf("%+v, %v", p, err)
	}
}
