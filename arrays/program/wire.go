package program

import (
	"encoding/json"
	"strings"
	"time"
	"unicode"

	"github.com/cleave-san/cleave/arrays/driver"
)

// Version of the protocol. A program that knows another refuses the request with
// kind not-supported.
const Version = 1

// Limits of what a program says, in bytes.
const (
	maxReply   = 16 << 20 // the changed regions of a large volume
	maxMessage = 500
	maxName    = 255 // of an identifier
	maxPath    = 4095
)

// A call's name, as it stands in a request and in what describe lists.
type call string

const (
	callDescribe   call = "describe"
	callResolve    call = "resolve"
	callPrepare    call = "prepare"
	callSplit      call = "split"
	callSplitGroup call = "split-group"
	callLookup     call = "lookup"
	callDelete     call = "delete"
	callArm        call = "arm"
	callCommit     call = "commit"
	callAbort      call = "abort"
	callExpose     call = "expose"
	callUnexpose   call = "unexpose"
	callOpen       call = "open"
	callRewrite    call = "rewrite"
	callRewritten  call = "rewritten"
	callResync     call = "resync"
	callRevert     call = "revert"
	callBreak      call = "break"
	callChanges    call = "changes"
	callCheck      call = "check"
	callPresented  call = "presented-to"
)

// asks reports whether a call leaves the array as it is: it may be repeated
// whatever became of it.
func (c call) asks() bool {
	switch c {
	case callDescribe, callResolve, callLookup, callOpen, callChanges, callCheck, callPresented:
		return true
	}
	return false
}

// required are the calls without which there is no provider.
var required = []call{callDescribe, callResolve, callPrepare, callSplit, callLookup, callDelete}

// request is a line to the program.
type request struct {
	Version  int       `json:"cleave"`
	ID       string    `json:"id"`
	Call     call      `json:"call"`
	Key      string    `json:"key"`      // the same for a call that is repeated
	Deadline time.Time `json:"deadline"` // the program is killed then
	Args     any       `json:"args"`
}

// reply is a line from the program: a result or an error.
type reply struct {
	ID     string          `json:"id"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  *failure        `json:"error,omitempty"`
}

type failure struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
}

// err is a failure as a driver's error: one line, of bounded length.
func (f *failure) err() error {
	msg := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.Join(strings.Fields(f.Message), " "))
	if len(msg) > maxMessage {
		msg = strings.ToValidUTF8(msg[:maxMessage], "") + "…"
	}
	if msg == "" {
		msg = "the program gives no reason"
	}
	return driver.Errorf(driver.ParseKind(f.Kind), "%s", msg)
}

// described is the result of describe.
type described struct {
	driver.Description
	// Calls are those that the program answers.
	Calls []call `json:"calls"`
	// Serve says that one process answers many requests: it is started with the
	// argument "serve" instead of a call's name.
	Serve bool `json:"serve"`
}

// Arguments of the calls.
type (
	tagArgs struct {
		Tag driver.Tag `json:"tag"`
	}
	splitArgs struct {
		Tag     driver.Tag        `json:"tag"`
		Volumes []driver.VolumeID `json:"volumes"`
	}
	prepareArgs struct {
		driver.PrepareOptions
		Volumes []driver.VolumeID `json:"volumes"`
	}
	armArgs struct {
		splitArgs
		AbortAfter float64 `json:"abortAfter"` // seconds
	}
	snapshotArgs struct {
		Snapshot driver.SnapshotID `json:"snapshot"`
	}
	exposeArgs struct {
		driver.ExposeOptions
		Snapshot driver.SnapshotID `json:"snapshot"`
	}
	rewrittenArgs struct {
		Snapshot driver.SnapshotID `json:"snapshot"`
		Regions  []region          `json:"regions"`
	}
	breakArgs struct {
		Snapshot driver.SnapshotID `json:"snapshot"`
		Name     string            `json:"name"`
	}
	changesArgs struct {
		Volume driver.VolumeID   `json:"volume"`
		From   driver.SnapshotID `json:"from"`
		To     driver.SnapshotID `json:"to"`
	}
	volumeArgs struct {
		Volume driver.VolumeID `json:"volume"`
	}
	checkArgs struct {
		Volumes []driver.VolumeID `json:"volumes"` // of the next set
	}
)

// opened is the result of open and rewrite: a file or block device of this host.
type opened struct {
	Path string `json:"path"`
}

// region is a part of a volume, in bytes.
type region struct {
	Off int64 `json:"off"`
	Len int64 `json:"len"`
}

// changed is the result of changes.
type changed struct {
	Granularity int64    `json:"granularity"`
	Regions     []region `json:"regions"`
}
