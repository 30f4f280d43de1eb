// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

//go:build wg_short_timers

package device

// timeScale divides each of the protocol's times. It is for tests only.
const timeScale = 20
