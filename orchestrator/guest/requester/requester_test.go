package requester

import (
	"context"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/writer"
)

// runner answers by the script's verb (launch, await, drop, probe).
type runner func(verb string, args []string) (Result, error)

func (r runner) Run(ctx context.Context, argv []string, stdin []byte) (Result, error) {
	if ctx.Err() != nil {
		return Result{}, ctx.Err()
	}
	i := slices.IndexFunc(argv, func(a string) bool { return a == "--" || a == "cleave" })
	return r(argv[i+1], argv[i+2:])
}

const (
	begun = `{"v":1,"start":{"requester":"x","at":"2026-11-22T18:00:00Z"}}` + "\n"
	ended = begun + `{"v":1,"end":{"at":"2026-11-22T18:00:03Z"}}` + "\n"
	set   = "set-0123456789abcdef-2"
)

func TestSnapshotAsksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		launches, awaits := 0, 0
		r := runner(func(verb string, args []string) (Result, error) {
			if args[0] != set {
				t.Errorf("args %q", args)
			}
			if verb == "launch" {
				if launches++; launches == 1 {
					return Result{}, errors.New("the agent was started anew")
				}
				if want := []string{set, "2", "3600", "20", "a b", "20"}; !slices.Equal(args, want) {
					t.Errorf("args %q, want %q", args, want)
				}
				return Result{Stdout: []byte(begun)}, nil
			}
			switch awaits++; awaits {
			case 1:
				return Result{}, errors.New("no such PID")
			case 2:
				return Result{Stdout: []byte(begun)}, nil
			}
			return Result{Stdout: []byte(ended)}, nil
		})
		report, err := Snapshot(t.Context(), r, "a\nb", set, writer.GuestOptions{Limit: 1500 * time.Millisecond, Keep: time.Hour})
		if err != nil || report.Finished.IsZero() || launches != 2 || awaits != 3 {
			t.Fatalf("%+v, %v after %d and %d", report, err, launches, awaits)
		}
	})
}

func TestSnapshotEndsWhereTheGuestDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := runner(func(verb string, _ []string) (Result, error) {
			time.Sleep(time.Second)
			if verb == "await" {
				return Result{Stdout: []byte(begun)}, nil
			}
			return Result{Stdout: []byte("")}, nil
		})
		began := time.Now()
		report, err := Snapshot(t.Context(), r, "", set, writer.GuestOptions{Limit: 10 * time.Second})
		if err == nil || !report.Finished.IsZero() || time.Since(began) > 10*time.Second+Grace+2*time.Second {
			t.Fatalf("%+v, %v after %v", report, err, time.Since(began))
		}
	})
}

func TestSnapshotRefusals(t *testing.T) {
	never := runner(func(string, []string) (Result, error) { panic("called") })
	for _, id := range []string{"", "set-", "set-$(reboot)", "set-../../etc", "set-1-", "set-1-2-3", "0123456789abcdef"} {
		if _, err := Snapshot(t.Context(), never, "", orchestrator.SetID(id), writer.GuestOptions{}); err == nil {
			t.Errorf("set %q is taken", id)
		}
	}
	if _, err := Snapshot(t.Context(), never, "", set, writer.GuestOptions{Volumes: []string{"vg/lv; reboot"}}); err == nil {
		t.Error("a volume that is no UUID is taken")
	}
	for name, r := range map[string]runner{
		"refused": func(string, []string) (Result, error) { return Result{}, ErrRefused },
		"script says": func(string, []string) (Result, error) {
			return Result{Status: 1, Stderr: []byte("no tmpfs\n\x1b[2J")}, nil
		},
	} {
		_, err := Snapshot(t.Context(), r, "", set, writer.GuestOptions{})
		if err == nil || strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The script is POSIX sh for every shell that may be /bin/sh in a guest.
func TestScriptIsPOSIX(t *testing.T) {
	for _, shell := range [][]string{{"dash", "-n"}, {"busybox", "sh", "-n"}, {"bash", "--posix", "-n"}} {
		path, err := exec.LookPath(shell[0])
		if err != nil {
			t.Logf("%s is not installed", shell[0])
			continue
		}
		for _, text := range []string{Script(), save} {
			cmd := exec.Command(path, shell[1:]...)
			cmd.Stdin = strings.NewReader(text)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%q: %v: %s", shell, err, out)
			}
		}
	}
}

func TestShellcheck(t *testing.T) {
	path, err := exec.LookPath("shellcheck")
	if err != nil {
		t.Skip("shellcheck is not installed (Debian: shellcheck)")
	}
	cmd := exec.Command(path, "--shell=dash", "--severity=warning", "-")
	cmd.Stdin = strings.NewReader(Script())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s", out)
	}
}
