package assemble

import (
	"context"

	"go.opentelemetry.io/otel/trace"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/orchestrator/engine"
)

// typeEmbedded is the array of `cleave array`.
const typeEmbedded = "embedded"

// openArrays makes the arrays of a configuration, and the publisher of
// recovered views: the target of the first embedded array. Nothing is connected.
func openArrays(cs []ArrayConfig, tracer trace.Tracer) ([]*arrays.Array, engine.Publisher, error) {
	var out []*arrays.Array
	var pub engine.Publisher = noPublisher{}
	for i, c := range cs {
		var d driver.Driver
		switch c.Type {
		case typeEmbedded:
			client := remote.New(c.Socket)
			if _, none := pub.(noPublisher); none {
				pub = publisher{client}
			}
			d = client
		default:
			return nil, nil, usage("arrays[%d].type: %q: want %s", i, c.Type, typeEmbedded)
		}
		out = append(out, arrays.New(c.Name, d, arrays.Options{Tracer: tracer}))
	}
	if len(out) == 0 {
		return nil, nil, usage("arrays: there is none, so no VM's disk can be split")
	}
	return out, pub, nil
}

// publisher serves recovered views by the data plane's target.
type publisher struct{ client *remote.Client }

func (p publisher) Publish(ctx context.Context, x engine.Publication) (driver.Path, error) {
	return p.client.Publish(ctx, remote.Publication{
		Name: x.Name, Socket: x.Socket, Export: x.Export, Identity: x.Identity, Initiators: x.Initiators, Writable: x.Writable,
	})
}

func (p publisher) Withdraw(ctx context.Context, name string) error {
	return p.client.Withdraw(ctx, name)
}

// noPublisher is for a configuration without a target of ours: views are
// reached by their sockets on this host.
type noPublisher struct{}

func (noPublisher) Publish(context.Context, engine.Publication) (driver.Path, error) {
	return driver.Path{}, driver.Errorf(driver.NotSupported, "no array of type %s is configured, whose target could serve recovered views", typeEmbedded)
}

func (noPublisher) Withdraw(context.Context, string) error { return nil }
