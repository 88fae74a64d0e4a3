// Package guest tests the guest step inside a real virtual machine, through the
// real QEMU guest agent: LVM snapshots, PostgreSQL, the watchdog, and what is
// left after an agent, a session or a step has died.
//
// Needs what integration/lab needs, and nothing in the guest but the agent.
package guest
