// Package requester has a guest make its own snapshots through whatever can run
// a program in it (the QEMU guest agent, VMware Tools). Nothing is installed in
// the guest: one script is handed over, lives on a tmpfs and goes on by itself.
//
// # What the script does (step.sh)
//
//	launch   puts itself into memory, starts "run" in a session of its own, and
//	         waits as await does
//	run      copies to memory what lets go of a suspended volume, starts "watch",
//	         which lives from that alone, asks the application
//	         writers (package app), makes one LVM snapshot after the other and
//	         flushes the disks under it, releases the writers, reports
//	watch    at the limit ends a step that has not ended and undoes all of it;
//	         after Keep drops the snapshots. It needs neither host nor agent
//	drop     ends and removes everything of a set
//	await    prints the report, when it is whole or the caller's time is over,
//	         and takes no processor time until then
//	probe    says what a step would find
//
// Nothing is held before the watchdog runs. A crash of the agent, of the host
// or of the step leaves a guest that puts itself right at the limit; a crash of
// the guest leaves at most snapshots, tagged with their expiry, which the next
// step of any set removes.
//
// All calls may be repeated: a set's step runs once, and its report stays until
// Drop. What comes from the guest is read by package wire and never used as a
// path or a command; what goes to the guest goes as arguments, never as shell
// text.
package requester

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/guest/wire"
	"github.com/cleave-san/cleave/orchestrator/writer"
)

// Runner runs programs inside one guest.
type Runner interface {
	// Run runs argv with stdin and returns when it has ended. An error says that
	// it is not known to have ended; one that wraps ErrRefused says that this
	// guest will never run a program. Output beyond a bound is cut off.
	Run(ctx context.Context, argv []string, stdin []byte) (Result, error)
}

// Result is how a program in the guest ended.
type Result struct {
	Status         int // exit status, 128+n after signal n
	Stdout, Stderr []byte
}

// ErrRefused says that the guest's agent does not run programs.
var ErrRefused = errors.New("the guest agent may not run programs")

const (
	// DefaultLimit and DefaultKeep stand for a zero in writer.GuestOptions.
	DefaultLimit = 2 * time.Minute
	DefaultKeep  = 24 * time.Hour
	// Grace is how much longer than the limit the host waits: the guest undoes
	// what it did when the limit has passed, and then says so.
	Grace = 30 * time.Second

	// share of its origin that a snapshot's store gets, in percent, where the
	// group has that much left.
	share = 20
	// awaitSeconds is how long one call for the report waits in the guest.
	awaitSeconds = 20
)

var (
	// A set's ID, with the number of the attempt where there may be several.
	setPattern  = regexp.MustCompile(`^set-[0-9a-z]{1,32}(-[0-9]{1,6})?$`)
	uuidPattern = regexp.MustCompile(`^[0-9A-Za-z]{6}(-[0-9A-Za-z]{4}){5}-[0-9A-Za-z]{6}$`)
)

// Snapshot has the guest run the step of set and returns its report. name is
// who carries it ("qemu-ga 7.2.0") and comes back as the report's Requester.
//
// With an error, or with a report that is not Finished, the step did not
// complete as far as is known; the guest undoes it by itself at o.Limit. Called
// again it does not run again: it asks for the same report.
func Snapshot(ctx context.Context, r Runner, name string, set orchestrator.SetID, o writer.GuestOptions) (wire.Report, error) {
	if o.Limit == 0 {
		o.Limit = DefaultLimit
	}
	if o.Keep == 0 {
		o.Keep = DefaultKeep
	}
	args := []string{"launch", string(set), seconds(o.Limit), seconds(o.Keep), strconv.Itoa(share), plain(name), strconv.Itoa(awaitSeconds)}
	if err := check(set); err != nil {
		return wire.Report{}, err
	}
	for _, v := range o.Volumes {
		if !uuidPattern.MatchString(v) {
			return wire.Report{}, fmt.Errorf("guest step: volume %.60q: want the UUID of a logical volume", v)
		}
		args = append(args, v)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.Limit+Grace, fmt.Errorf("the guest did not end the step within %v: %w", o.Limit+Grace, orchestrator.ErrTimeout))
	defer cancel()
	launch := append([]string{"/bin/sh", "-c", save, "cleave"}, args...)
	out, err := again(ctx, r, launch, Script())
	if err != nil {
		return wire.Report{}, fmt.Errorf("guest step: start: %w", err)
	}
	for {
		report, err := wire.Parse(out)
		if err != nil {
			return report, err
		}
		if !report.Finished.IsZero() {
			return report, nil
		}
		if ctx.Err() != nil {
			return report, context.Cause(ctx)
		}
		if out, err = again(ctx, r, call("await", string(set), strconv.Itoa(awaitSeconds)), Script()); err != nil {
			return report, fmt.Errorf("guest step: report: %w", err)
		}
	}
}

// Drop ends the step of set if it runs, and removes all that it left in the
// guest. That there is nothing is success.
func Drop(ctx context.Context, r Runner, set orchestrator.SetID) error {
	if err := check(set); err != nil {
		return err
	}
	if _, err := again(ctx, r, call("drop", string(set)), Script()); err != nil {
		return fmt.Errorf("guest: drop the snapshots of %s: %w", set, err)
	}
	return nil
}

// Probe asks what a step would find. It changes nothing in the guest.
func Probe(ctx context.Context, r Runner) (wire.Probe, error) {
	out, err := once(ctx, r, call("probe", strconv.Itoa(share)), Script())
	if err != nil {
		return wire.Probe{}, fmt.Errorf("guest probe: %w", err)
	}
	return wire.ParseProbe(out)
}

// call has the guest's shell read the script from its input.
func call(args ...string) []string {
	return append([]string{"/bin/sh", "-s", "--"}, args...)
}

// again runs a call that may be repeated until it is known to have ended: an
// agent that is started anew forgets its processes.
func again(ctx context.Context, r Runner, argv []string, script string) ([]byte, error) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		out, err := once(ctx, r, argv, script)
		var failed *exitError
		if err == nil || errors.As(err, &failed) || errors.Is(err, ErrRefused) || errors.Is(err, writer.ErrGone) {
			return out, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		case <-time.After(wait):
		}
	}
}

// once runs a call and makes an exit status other than 0 an error.
func once(ctx context.Context, r Runner, argv []string, script string) ([]byte, error) {
	res, err := r.Run(ctx, argv, []byte(script))
	if err != nil {
		return nil, err
	}
	if res.Status != 0 {
		return nil, &exitError{res.Status, plain(string(res.Stderr))}
	}
	return res.Stdout, nil
}

// exitError says that the script itself gave up; to try again would not help.
type exitError struct {
	status int
	words  string
}

func (e *exitError) Error() string {
	if e.words == "" {
		return fmt.Sprintf("the script ended with status %d", e.status)
	}
	return e.words
}

func check(set orchestrator.SetID) error {
	if !setPattern.MatchString(string(set)) {
		return fmt.Errorf("guest step: set %.60q: want set- and hexadecimal digits, and -N for an attempt", string(set))
	}
	return nil
}

// seconds rounds up, and is at least one.
func seconds(d time.Duration) string {
	return strconv.FormatInt(max(1, int64((d+time.Second-1)/time.Second)), 10)
}

// plain makes foreign words fit for one line.
func plain(s string) string {
	s = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))), " ")
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "")
	}
	return s
}
