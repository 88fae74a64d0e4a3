package api

import "github.com/cleave-san/cleave/orchestrator"

// Version of the interface; it stands in every path.
const Version = 1

const (
	// maxRequest bounds a request's body, in bytes.
	maxRequest = 1 << 20
	// maxAnswer bounds what a client reads of one answer, or of one event.
	maxAnswer = 64 << 20
)

// Bodies of answers. Each is an object, so that it can grow.
type (
	versionAnswer struct {
		API     int    `json:"api"`
		Release string `json:"release"`
	}
	vmsAnswer struct {
		VMs []orchestrator.VM `json:"vms"`
	}
	verdictsAnswer struct {
		Verdicts []orchestrator.Verdict `json:"verdicts"`
	}
	setsAnswer struct {
		Sets []orchestrator.Set `json:"sets"`
	}
	setAnswer struct {
		Set *orchestrator.Set `json:"set,omitempty"`
	}
	diffAnswer struct {
		Diff *orchestrator.Diff `json:"diff,omitempty"`
	}
	errorAnswer struct {
		Error Error             `json:"error"`
		Set   *orchestrator.Set `json:"set,omitempty"`
	}
	// eventLine is one line of an event stream. A stream that does not end
	// with a Set or an Error was cut off.
	eventLine struct {
		Event *orchestrator.Event `json:"event,omitempty"`
		Set   *orchestrator.Set   `json:"set,omitempty"`
		Error *Error              `json:"error,omitempty"`
	}
)
