package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/orchestrator"
)

const (
	// releaseLimit bounds the giving back at the end; the control plane goes on
	// with it by itself.
	releaseLimit = 10 * time.Minute
	// stopDelay is how long CMD may take to end after it was told to.
	stopDelay = 30 * time.Second
)

func (a *app) execCommand() *cobra.Command {
	var flags requestFlags
	c := &cobra.Command{
		Use:   "exec --vm VM… -- CMD [ARG…]",
		Short: "Run a command with the recovered LUNs at hand, then give them back",
		Long: `Make a snapshot set, wait until it is ready, run CMD, and give everything back,
whatever CMD did. The exit status is CMD's (128 and the signal's number if a
signal ended it). CMD is not run if the set does not become ready or a VM reached
less than was asked; the exit status is then cleave's own.

CMD finds in its environment:

  CLEAVE_SET          the set's ID
  CLEAVE_DOCUMENT     path of the set's document (JSON); gone after CMD
  CLEAVE_LUNS         how many LUNs there are; n counts from 0
  CLEAVE_LUN_n_NAME   set/vm/disk
  CLEAVE_LUN_n_CLEAN  1 for recovered content, 0 for a split as it came off
  CLEAVE_LUN_n_URL    iscsi://portal/iqn/lun, with --to
  CLEAVE_LUN_n_NBD    nbd+unix:///export?socket=path, for readers on this host

SIGINT and SIGTERM are passed on to CMD as SIGTERM.`,
		Example: `  cleave exec --vm db -- sh -c 'qemu-img convert -O raw "$CLEAVE_LUN_0_NBD" /backup/db.raw'
  cleave exec --vm db --level application --to iqn.1993-08.org.debian:01:backup1 -- /usr/local/bin/backup`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf("there is no command to run: put it after --")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			req, err := flags.read()
			if err != nil {
				return err
			}
			path, err := exec.LookPath(args[0]) // before anything is touched
			if err != nil {
				return hint(usagef("command %q can't be run: %w", args[0], errors.Unwrap(err)), "nothing was touched; give a path, or a name on PATH")
			}
			return a.withControl(func(s Control) error { return a.exec(c.Context(), s, req, path, args) })
		},
	}
	flags.register(c)
	return c
}

// exec makes the set, runs the command and releases the set on every path.
func (a *app) exec(ctx context.Context, s Control, req orchestrator.Request, path string, args []string) (err error) {
	set, err := s.Create(ctx, req)
	if err != nil {
		return err
	}
	id := set.ID
	defer func() {
		// Also after an interrupt: that is what it is for.
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseLimit)
		defer cancel()
		if _, rerr := s.Release(limit, id); rerr != nil {
			rerr = hint(fmt.Errorf("giving back snapshot set %s: %w", id, rerr), "`cleave snapshot delete %s` tries again; its lease ends it at the latest", id)
			var said status
			if errors.As(err, &said) { // CMD's status stands
				say(a.Err, "cleave", rerr.Error())
				return
			}
			err = errors.Join(err, rerr)
		}
	}()
	show := a.progress(id)
	set, err = s.Wait(ctx, id, show.event)
	show.end()
	if err != nil {
		return err
	}
	if err := outcome(set); err != nil {
		return hint(err, "%s was not run", args[0])
	}
	if set.State != orchestrator.StateReady {
		return fmt.Errorf("snapshot set %s is %s: %s was not run", id, set.State, args[0])
	}
	return a.runWith(ctx, set, path, args)
}

// runWith runs the command with the set in its environment.
func (a *app) runWith(ctx context.Context, set orchestrator.Set, path string, args []string) error {
	dir, err := os.MkdirTemp("", "cleave-")
	if err != nil {
		return fmt.Errorf("place for the set's document: %w", err)
	}
	defer os.RemoveAll(dir)
	doc := filepath.Join(dir, "set.json")
	b, err := json.MarshalIndent(set, "", "  ")
	if err == nil {
		err = os.WriteFile(doc, append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("the set's document: %w", err)
	}

	cmd := exec.CommandContext(ctx, path, args[1:]...)
	cmd.Args[0] = args[0]
	cmd.Env = append(os.Environ(), environment(set, doc)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.In, a.Out, a.Err
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopDelay
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return status(128 + int(ws.Signal()))
		}
		return status(exit.ExitCode())
	case err != nil:
		return fmt.Errorf("running %q: %w", args[0], err)
	}
	return nil
}

// environment describes the set's LUNs to the command.
func environment(set orchestrator.Set, doc string) []string {
	// Those with a new identity are the same disks once more, for others.
	set.LUNs = slices.DeleteFunc(slices.Clone(set.LUNs), func(l orchestrator.LUN) bool { return l.NewIdentity })
	env := []string{
		"CLEAVE_SET=" + string(set.ID),
		"CLEAVE_DOCUMENT=" + doc,
		"CLEAVE_LUNS=" + strconv.Itoa(len(set.LUNs)),
	}
	for i, l := range set.LUNs {
		clean := "0"
		if l.Clean {
			clean = "1"
		}
		n := "CLEAVE_LUN_" + strconv.Itoa(i)
		env = append(env, n+"_NAME="+l.Name, n+"_CLEAN="+clean)
		if u := iscsiURL(l); u != "" {
			env = append(env, n+"_URL="+u)
		}
		if u := nbdURL(l); u != "" {
			env = append(env, n+"_NBD="+u)
		}
	}
	return env
}
