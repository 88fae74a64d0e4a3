package agent

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cleave-san/cleave/orchestrator/guest/requester"
)

// Ping asks the agent for an answer, and nothing else.
func (c *Client) Ping(ctx context.Context) error { return c.Do(ctx, "guest-ping", nil, nil) }

// Info is who the agent is and which of its commands its owner allows.
type Info struct {
	Version string
	Enabled map[string]bool
}

// Info asks by guest-info.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var answer struct {
		Version  string `json:"version"`
		Commands []struct {
			Name    string `json:"name"`
			Enabled bool   `json:"enabled"`
		} `json:"supported_commands"`
	}
	if err := c.Do(ctx, "guest-info", nil, &answer); err != nil {
		return Info{}, err
	}
	info := Info{Version: clean(answer.Version), Enabled: map[string]bool{}}
	if len(info.Version) > 40 {
		info.Version = info.Version[:40]
	}
	for _, k := range answer.Commands {
		if len(k.Name) <= 64 && len(info.Enabled) < 1000 {
			info.Enabled[k.Name] = k.Enabled
		}
	}
	return info, nil
}

// MaxOutput is how much of a program's output and of its complaints is kept.
const MaxOutput = 1 << 20

// Run runs a program in the guest by guest-exec and waits until it has ended.
// It is a requester.Runner. An agent that was started anew in the meantime no
// longer knows the program: that is an error, and the program may still run.
func (c *Client) Run(ctx context.Context, argv []string, stdin []byte) (requester.Result, error) {
	defer c.use()()
	var started struct {
		PID int64 `json:"pid"`
	}
	args := map[string]any{"path": argv[0], "arg": argv[1:], "capture-output": true}
	if len(stdin) > 0 {
		args["input-data"] = base64.StdEncoding.EncodeToString(stdin)
	}
	if err := c.Do(ctx, "guest-exec", args, &started); err != nil {
		var refused *Error
		if errors.As(err, &refused) && (refused.Class == "CommandNotFound" || strings.Contains(refused.Desc, "disabled")) {
			return requester.Result{}, fmt.Errorf("%w: %w", requester.ErrRefused, err)
		}
		return requester.Result{}, err
	}
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		var s struct {
			Exited   bool   `json:"exited"`
			ExitCode int    `json:"exitcode"`
			Signal   int    `json:"signal"`
			Out      string `json:"out-data"`
			Err      string `json:"err-data"`
		}
		if err := c.Do(ctx, "guest-exec-status", map[string]int64{"pid": started.PID}, &s); err != nil {
			return requester.Result{}, err
		}
		if s.Exited {
			r := requester.Result{Status: s.ExitCode}
			if s.Signal != 0 {
				r.Status = 128 + s.Signal
			}
			var err error
			if r.Stdout, err = decode(s.Out); err == nil {
				r.Stderr, err = decode(s.Err)
			}
			if err != nil {
				return requester.Result{}, fmt.Errorf("guest-exec-status: output: %w", err)
			}
			return r, nil
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return requester.Result{}, fmt.Errorf("program in the guest: %w", context.Cause(ctx))
		case <-t.C:
		}
	}
}

func decode(s string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if len(b) > MaxOutput {
		b = b[:MaxOutput]
	}
	return b, err
}
