package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cleave-san/cleave/orchestrator"
)

// withControl runs fn with the control plane, and closes the connection.
func (a *app) withControl(fn func(Control) error) error {
	c := a.parts.Service(a.socket)
	defer c.Close()
	return a.explainSocket(fn(c), "is `cleave serve` running? --socket or CLEAVE_SOCKET names another control socket")
}

// withStorage is the same for the data plane.
func (a *app) withStorage(fn func(Storage) error) error {
	s := a.parts.Storage(a.arraySocket)
	defer s.Close()
	return a.explainSocket(fn(s), "is `cleave array` running? --array-socket or CLEAVE_ARRAY_SOCKET names another socket")
}

func (a *app) explainSocket(err error, next string) error {
	if code, _ := exitOf(err); code == ExitUnreachable || code == ExitNotPermitted && errors.Is(err, orchestrator.ErrNotPermitted) {
		return hint(err, "%s", next)
	}
	return err
}

// setID reads a set's ID.
func setID(s string) (orchestrator.SetID, error) {
	const form = "set-0123456789abcdef"
	bad := len(s) != len(form) || s[:4] != form[:4]
	for _, r := range s[min(4, len(s)):] {
		bad = bad || !strings.ContainsRune("0123456789abcdef", r)
	}
	if bad {
		return "", hint(usagef("snapshot set %.60q: want an ID such as %s", s, form), "`cleave snapshot list` shows them")
	}
	return orchestrator.SetID(s), nil
}

// ends are the errors of sets that were aborted, by the set's code, and what to
// try next where there is something better than reading the whole story.
var ends = map[orchestrator.Code]struct {
	err  error
	next string
}{
	orchestrator.CodeLevel:        {orchestrator.ErrLevel, ""},
	orchestrator.CodeBusy:         {orchestrator.ErrBusy, ""},
	orchestrator.CodeConsent:      {orchestrator.ErrNotPermitted, "--allow-unmirrored consents to production running on one copy until the resync"},
	orchestrator.CodeTimeout:      {orchestrator.ErrTimeout, ""},
	orchestrator.CodeUnreachable:  {orchestrator.ErrUnreachable, ""},
	orchestrator.CodeNotPermitted: {orchestrator.ErrNotPermitted, ""},
	orchestrator.CodeRestarted:    {nil, "nothing is left behind; run it again"},
}

// outcome turns a set that is ready or over into the command's error.
func outcome(s orchestrator.Set) error {
	short := slices.IndexFunc(s.VMs, func(v orchestrator.VMResult) bool { return v.Reached < v.Asked })
	switch {
	case s.State == orchestrator.StateAborted:
		end := ends[s.Code]
		err := error(&hinted{err: fmt.Errorf("snapshot set %s was aborted: %s", s.ID, s.Reason), is: end.err})
		if end.next != "" {
			return hint(err, "%s", end.next)
		}
		return hint(err, "nothing is left behind; `cleave snapshot show %s` has the whole story", s.ID)
	case short >= 0:
		v := s.VMs[short]
		return hint(fmt.Errorf("VM %q: %s asked, %s reached: %s: %w", v.Name, v.Asked, v.Reached, v.Why, orchestrator.ErrLevel),
			"the copies are there: `cleave snapshot show %s`; to give them back: `cleave snapshot delete %s`", s.ID, s.ID)
	}
	return nil
}

// interrupted says what goes on without the command.
func interrupted(err error, id orchestrator.SetID) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, orchestrator.ErrTimeout) ||
		errors.Is(err, orchestrator.ErrUnreachable) {
		return hint(err, "snapshot set %s goes on without this command: `cleave snapshot show %s` follows it, `cleave snapshot delete %s` ends it", id, id, id)
	}
	return err
}
