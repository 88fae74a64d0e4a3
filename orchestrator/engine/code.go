package engine

import (
	"context"
	"errors"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/orchestrator"
)

// codeOf classifies why a set ends, for programs; the words are for people.
func codeOf(err error) orchestrator.Code {
	for _, row := range []struct {
		is   error
		code orchestrator.Code
	}{
		{errReleased, orchestrator.CodeReleased},
		{errRestarted, orchestrator.CodeRestarted},
		{orchestrator.ErrLevel, orchestrator.CodeLevel},
		{orchestrator.ErrBusy, orchestrator.CodeBusy},
		{orchestrator.ErrTimeout, orchestrator.CodeTimeout},
		{context.DeadlineExceeded, orchestrator.CodeTimeout},
		{orchestrator.ErrUnreachable, orchestrator.CodeUnreachable},
		{orchestrator.ErrNotPermitted, orchestrator.CodeNotPermitted},
	} {
		if errors.Is(err, row.is) {
			return row.code
		}
	}
	switch arrays.KindOf(err) {
	case driver.Busy, driver.NotSynchronized:
		return orchestrator.CodeBusy
	case driver.NeedsConsent:
		return orchestrator.CodeConsent
	case driver.NotPermitted:
		return orchestrator.CodeNotPermitted
	case driver.Unreachable, driver.OutcomeUnknown:
		return orchestrator.CodeUnreachable
	default:
		return orchestrator.CodeFailed
	}
}
