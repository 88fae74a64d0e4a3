package rbd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
)

// maxOutput is the most that a command may say, in bytes: the changed regions of
// a large image.
const maxOutput = 256 << 20

// bounded keeps what is written to it, up to its limit.
type bounded struct {
	bytes.Buffer
	most int
}

// Write implements io.Writer; after its error the command can't write any more.
func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > b.most {
		return 0, fmt.Errorf("more than %d bytes", b.most)
	}
	return b.Buffer.Write(p)
}

// tail keeps the end of what is written to it.
type tail []byte

func (t *tail) Write(p []byte) (int, error) {
	*t = append(*t, p...)
	if over := len(*t) - 4096; over > 0 {
		*t = (*t)[over:]
	}
	return len(p), nil
}

// ask runs a command that changes nothing, and decodes the JSON that it prints.
func (d *Driver) ask(ctx context.Context, out any, args ...string) error {
	raw, err := d.run(ctx, false, append(args, "--format=json"))
	if err == nil && json.Unmarshal(raw, out) != nil {
		err = driver.Errorf(driver.Unreachable, "%s %s: what it prints is not the JSON that was expected", filepath.Base(d.o.Command), verb(args))
	}
	return err
}

// do runs a command that changes something.
func (d *Driver) do(ctx context.Context, args ...string) error {
	_, err := d.run(ctx, true, args)
	return err
}

func verb(args []string) string {
	for i, a := range args {
		if strings.HasPrefix(a, "--") {
			args = args[:i]
			break
		}
	}
	return strings.Join(args, " ")
}

// run runs a command. One that changes something is not ended with ctx.
func (d *Driver) run(ctx context.Context, changes bool, args []string) ([]byte, error) {
	what := filepath.Base(d.o.Command) + " " + verb(args)
	if err := ctx.Err(); err != nil {
		return nil, driver.Errorf(driver.Unreachable, "%s was not started: %w", what, err)
	}
	if changes {
		ctx = context.WithoutCancel(ctx) // see toEnd
	}
	ctx, cancel := context.WithTimeout(ctx, d.o.Limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, d.o.Command, append(args, d.access()...)...)
	cmd.Env = environment
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is ours to judge
	cmd.WaitDelay = 5 * time.Second
	out := &bounded{most: maxOutput}
	var says tail
	cmd.Stdout, cmd.Stderr = out, &says
	if err := cmd.Start(); err != nil {
		return nil, driver.Errorf(driver.Unreachable, "%s: %w", what, err)
	}
	err := cmd.Wait()
	if err == nil {
		return out.Bytes(), nil
	}
	var exit *exec.ExitError
	if cause := ctx.Err(); cause != nil || !errors.As(err, &exit) || exit.ExitCode() < 0 {
		kind := driver.Unreachable
		if changes {
			kind = driver.OutcomeUnknown
		}
		if cause == nil {
			cause = err
		}
		return nil, driver.Errorf(kind, "%s was ended: %w", what, cause)
	}
	errno := syscall.Errno(exit.ExitCode())
	return nil, driver.Errorf(kindOf(errno, changes), "%s: %s%w", what, said(says), errno)
}

// access says which cluster, and as whom. The user's key is in a file that ceph.conf names.
func (d *Driver) access() []string {
	var a []string
	for _, x := range []struct{ option, value string }{{"--conf=", d.o.Conf}, {"--id=", d.o.User}} {
		if x.value != "" {
			a = append(a, x.option+x.value)
		}
	}
	return append(a, "--client-mount-timeout=30")
}

// kindOf is the kind of an errno that rbd ends with.
func kindOf(e syscall.Errno, changes bool) driver.Kind {
	switch e {
	case syscall.ENOENT:
		return driver.NotFound
	case syscall.EPERM, syscall.EACCES:
		return driver.NotPermitted
	case syscall.EBUSY, syscall.EROFS, syscall.ENOTEMPTY:
		return driver.Busy
	case syscall.ENOSPC, syscall.EDQUOT:
		return driver.NoSpace
	case syscall.EINVAL, syscall.EEXIST:
		return driver.InvalidRequest
	case syscall.EOPNOTSUPP, syscall.ENOSYS:
		return driver.NotSupported
	}
	if changes {
		return driver.OutcomeUnknown
	}
	return driver.Unreachable
}

// said is the last line that has a word for people, without Ceph's own prefix of
// time and thread.
func said(t tail) string {
	lines := strings.Split(strings.TrimSpace(strings.ToValidUTF8(string(t), "?")), "\n")
	last := strings.TrimSpace(lines[len(lines)-1])
	last = strings.TrimPrefix(last, "rbd: ")
	if len(last) > 300 {
		last = strings.ToValidUTF8(last[:300], "") + "…"
	}
	if last == "" {
		return ""
	}
	return last + ": "
}
