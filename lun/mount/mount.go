package mount

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun/fuse"
)

// Command is the hidden command by which the program becomes the process behind
// a mount.
const Command = "mount-helper"

// ErrBusy says that the directory is in use, or that something is mounted there.
var ErrBusy = errors.New("in use")

// Request is what is mounted.
type Request struct {
	// Open describes the file system for the Opener. It may hold secrets: it is
	// in no argument of a process.
	Open json.RawMessage `json:"open"`
	// Dir is an existing directory. Its path becomes absolute.
	Dir string `json:"dir"`
	// Source is what `findmnt` shows.
	Source string `json:"source"`
	// Others may look as well, as far as the files' modes let them.
	Others bool `json:"others"`
}

// patience is for how long a file system may take to open: a journal is
// replayed on the way.
const patience = 5 * time.Minute

// Start mounts. program is what runs Main, as in exec.Command; nil is this
// program with Command. The mount outlives this process. Warnings are about
// what is readable all the same.
func Start(ctx context.Context, program []string, r Request) (warnings []string, err error) {
	if r.Dir, err = fuse.MountPath(r.Dir); err != nil {
		return nil, err
	}
	if _, err := os.ReadDir(r.Dir); errors.Is(err, unix.ENOTCONN) {
		err = Stop(r.Dir) // of a process that died
		if err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	if left, err := fuse.Mounted(r.Dir); err != nil || left {
		return nil, errors.Join(err, fmt.Errorf("something is mounted on %s: %w", r.Dir, ErrBusy))
	}
	if program == nil {
		program = []string{"/proc/self/exe", Command}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.Command(program[0], program[1:]...)
	cmd.Args[0], cmd.Dir = os.Args[0], "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the process behind the mount: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { out.Close() })
	defer stop()
	defer func() {
		if err != nil { // its input ends without the word: it undoes what it did
			in.Close()
			_ = cmd.Wait()
			return
		}
		go func() { _ = cmd.Wait() }() // reaped, if we live that long
	}()
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	_, werr := in.Write(append(b, '\n'))
	line, err := bufio.NewReader(io.LimitReader(out, 1<<20)).ReadBytes('\n')
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("waiting for the process behind the mount: %w", ctx.Err())
	case err != nil:
		return nil, fmt.Errorf("the process behind the mount ended without a word: %w", errors.Join(err, werr))
	}
	var a reply
	if err := json.Unmarshal(line, &a); err != nil {
		return nil, fmt.Errorf("the answer of the process behind the mount: %w", err)
	}
	if a.Error != nil {
		return nil, a.Error
	}
	if _, err = io.WriteString(in, keepWord+"\n"); err == nil {
		err = in.Close()
	}
	return a.Warnings, err
}

// Stop unmounts a directory. While it is in use it is ErrBusy, and nothing has
// changed. That nothing is mounted there is success.
func Stop(dir string) error {
	path, err := fuse.MountPath(dir)
	if err != nil {
		return err
	}
	err = fuse.UnmountTree(path)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: %w", err, ErrBusy)
	}
	return err
}
